// Package integrations holds what SIEMs run to ask parry for blocks: one POSIX sh script for each, with curl. They differ in how a SIEM calls
// them and in what it tells. The rest, from the configuration to the spool and its sender, is core.part, which weave copies into each script.
package integrations

//go:generate ./weave
