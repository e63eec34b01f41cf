-- A token that keeps asking for blocks of what is never blocked may ask for nothing until then; 0: it is not suspended.
ALTER TABLE tokens ADD COLUMN suspended_at bigint NOT NULL DEFAULT 0;
ALTER TABLE tokens ADD COLUMN suspended_until bigint NOT NULL DEFAULT 0;
ALTER TABLE tokens ADD COLUMN suspended_why text NOT NULL DEFAULT '';
