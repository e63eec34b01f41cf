-- When a hold ends by itself, 0 for never.
ALTER TABLE holds ADD COLUMN until bigint NOT NULL DEFAULT 0;

-- Firewalls that are to be empty, come what may, until the panic is over.
CREATE TABLE panics (
    name      text NOT NULL PRIMARY KEY, -- a firewall, or empty for all
    called_by text   NOT NULL,
    reason    blob   NOT NULL,
    since     bigint NOT NULL,
    rev       bigint NOT NULL, -- when it was called last
    told      text   NOT NULL  -- the notification that told of it
) WITHOUT ROWID;
-- When a panic's run last proved that nothing is loaded.
ALTER TABLE firewalls ADD COLUMN emptied_rev bigint NOT NULL DEFAULT 0;

-- Changes that wait for somebody's word, and the word.
CREATE TABLE approvals (
    id         text NOT NULL PRIMARY KEY,
    firewall   text NOT NULL,
    state      text   NOT NULL,
    why        text   NOT NULL,
    rev        bigint NOT NULL,
    created_at bigint NOT NULL,
    expires_at bigint NOT NULL,
    total      bigint NOT NULL,
    removed    bigint NOT NULL,
    ended      bigint NOT NULL,
    added      bigint NOT NULL,
    known      bigint NOT NULL,
    head       blob   NOT NULL, -- the first lines of diff
    diff       blob   NOT NULL, -- gzip
    decided_by text   NOT NULL,
    decided_at bigint NOT NULL,
    decision   blob   NOT NULL  -- why
) WITHOUT ROWID;
CREATE UNIQUE INDEX approvals_open ON approvals (firewall) WHERE state IN ('waiting', 'approved', 'denied');
ALTER TABLE firewalls DROP COLUMN approved;

-- By the configuration nothing is applied to the firewall; what its last run in check mode showed, JSON.
ALTER TABLE firewalls ADD COLUMN simulate bigint NOT NULL DEFAULT 0;
ALTER TABLE firewalls ADD COLUMN simulation text NOT NULL DEFAULT '';
-- Only simulated rules have asked for the block.
ALTER TABLE blocks ADD COLUMN simulated bigint NOT NULL DEFAULT 0;
