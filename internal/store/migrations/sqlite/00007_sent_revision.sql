-- The highest revision that a run may have brought to a firewall. A firewall that tells of a higher one shows that this database is older.
ALTER TABLE firewalls ADD COLUMN sent_rev bigint NOT NULL DEFAULT 0;
UPDATE firewalls SET sent_rev = coalesce((SELECT max(revision) FROM runs WHERE runs.firewall = firewalls.name), applied_rev);
