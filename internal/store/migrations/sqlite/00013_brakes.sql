-- +goose Up
-- When a hold ends by itself, 0 for never.
ALTER TABLE holds ADD COLUMN until bigint NOT NULL DEFAULT 0;
