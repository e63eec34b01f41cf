-- A storm's notifications wait behind all others.
ALTER TABLE deliveries ADD COLUMN bulk bigint NOT NULL DEFAULT 0;
DROP INDEX deliveries_open;
CREATE INDEX deliveries_open ON deliveries (channel, bulk, outbox_id) WHERE delivered_at = 0;

CREATE TABLE channels (
    name         text NOT NULL PRIMARY KEY,
    delivered_at bigint NOT NULL, -- of the last delivery
    failed_at    bigint NOT NULL, -- of the last failure
    error        blob  NOT NULL  -- of that
) WITHOUT ROWID;
