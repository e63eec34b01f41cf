
-- Who fetches which feed, in which form, and what it has. The token's name as it was then.
CREATE TABLE feed_readers (
    feed       text   NOT NULL,
    token_id   text   NOT NULL,
    query      text   NOT NULL,
    remote     text   NOT NULL,
    token_name text   NOT NULL,
    last_read  bigint NOT NULL,
    status     bigint NOT NULL,
    etag       text   NOT NULL,
    rev        bigint NOT NULL,
    reads      bigint NOT NULL,
    PRIMARY KEY (feed, token_id, query, remote)
) WITHOUT ROWID;
