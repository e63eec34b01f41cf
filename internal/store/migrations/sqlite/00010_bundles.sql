-- Which copy of a bundle firewalls stay on by an operator's word; an empty firewall is every one of the bundle.
CREATE TABLE pins (
    bundle   text NOT NULL,
    firewall text NOT NULL,
    digest   text   NOT NULL,
    version  text   NOT NULL,
    set_by   text   NOT NULL,
    set_at   bigint NOT NULL,
    PRIMARY KEY (bundle, firewall)
) WITHOUT ROWID;

-- What the replicas share of a bundle: JSON, empty for none.
CREATE TABLE bundles (
    name    text NOT NULL PRIMARY KEY,
    release text NOT NULL, -- the version that the firewalls beside the canaries follow
    trial   text NOT NULL, -- how far a newer one has come
    problem text NOT NULL  -- what is wrong with the newest edit
) WITHOUT ROWID;

-- Runs in check mode that somebody asked for and no lane has begun yet.
CREATE TABLE checks (
    run_id   text NOT NULL PRIMARY KEY,
    firewall text NOT NULL,
    bundle   text   NOT NULL,
    digest   text   NOT NULL,
    asked_by text   NOT NULL,
    asked_at bigint NOT NULL
) WITHOUT ROWID;
CREATE INDEX checks_firewall ON checks (firewall, run_id);
