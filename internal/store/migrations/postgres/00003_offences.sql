-- What is known of each offender: an IPv4 address, an IPv6 /64, or a wider prefix that was blocked itself.
CREATE TABLE offences (
    source      bytea  NOT NULL PRIMARY KEY, -- as in blocks
    wide        bigint NOT NULL, -- 1: a grace of it holds for what lies in it, too
    offences    bigint NOT NULL,
    rung        bigint NOT NULL, -- that the newest offence reached
    last_at     bigint NOT NULL, -- when it began
    until       bigint NOT NULL, -- a block of it stands until then at least; 0: ask table blocks
    grace_until bigint NOT NULL,
    grace_by    text   NOT NULL
);
CREATE INDEX offences_wide ON offences (source) WHERE wide = 1 AND grace_until > 0;

ALTER TABLE blocks ADD COLUMN offence bigint NOT NULL DEFAULT 0; -- of its source, from 1
ALTER TABLE blocks ADD COLUMN promoted bigint NOT NULL DEFAULT 0; -- so many sources of the prefix made it
ALTER TABLE requests ADD COLUMN source text NOT NULL DEFAULT ''; -- the address that was asked for, where the block is of a prefix
