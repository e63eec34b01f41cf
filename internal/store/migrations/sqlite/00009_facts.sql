-- What a firewall says of itself, as JSON, empty for nothing yet; and the revision at which that changed.
ALTER TABLE firewalls ADD COLUMN facts text NOT NULL DEFAULT '';
ALTER TABLE firewalls ADD COLUMN facts_rev bigint NOT NULL DEFAULT 0;
