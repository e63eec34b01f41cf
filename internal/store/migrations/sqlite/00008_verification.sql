-- What a verify found to differ from what was proved, as JSON, empty for nothing; the machine that answered last; the firewall's digest at the
-- last proof.
ALTER TABLE firewalls ADD COLUMN drift text NOT NULL DEFAULT '';
ALTER TABLE firewalls ADD COLUMN machine_id text NOT NULL DEFAULT '';
ALTER TABLE firewalls ADD COLUMN proved_as text NOT NULL DEFAULT '';

-- What each firewall held when it was last read.
CREATE TABLE loaded (
    firewall text NOT NULL PRIMARY KEY REFERENCES firewalls ON DELETE CASCADE,
    at       bigint NOT NULL,
    run_id   text   NOT NULL,
    entries  bigint NOT NULL,
    content  blob   NOT NULL -- gzip
) WITHOUT ROWID;
