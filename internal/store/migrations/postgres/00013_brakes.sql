-- +goose Up
-- When a hold ends by itself, 0 for never.
ALTER TABLE holds ADD COLUMN until bigint NOT NULL DEFAULT 0;

-- Firewalls that are to be empty, come what may, until the panic is over.
CREATE TABLE panics (
    name      text COLLATE "C" NOT NULL PRIMARY KEY, -- a firewall, or empty for all
    called_by text   NOT NULL,
    reason    bytea  NOT NULL,
    since     bigint NOT NULL,
    rev       bigint NOT NULL, -- when it was called last
    told      text   NOT NULL  -- the notification that told of it
);
-- When a panic's run last proved that nothing is loaded.
ALTER TABLE firewalls ADD COLUMN emptied_rev bigint NOT NULL DEFAULT 0;
