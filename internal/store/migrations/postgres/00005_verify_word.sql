-- The revision at which an operator asked for a read-back, 0 for none.
ALTER TABLE firewalls ADD COLUMN verify_rev bigint NOT NULL DEFAULT 0;
