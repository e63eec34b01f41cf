// Package reconcile makes every firewall equal to the desired state and proves it: one lane per firewall.
//
// # A lane
//
// A lane is one goroutine that owns one firewall. It takes the firewall's lock in the store, which raises its epoch, then the lock on this
// machine that a killed controller's run may still hold, and then repeats one step: read what the store says of the firewall, decide
// ([decide], a pure function), act, wait. Lanes share nothing but the [view] of the standing blocks and the slots that bound how many runs
// are on at once, so that a dead or slow firewall delays no other.
//
// A run takes everything that gathered before it: the entries are rendered when the run begins, at revision N, and when the firewall's
// proof equals what was sent, less what it rejected, N becomes its applied revision. Whether a change concerns a firewall is told by the
// newest revision of each selector that means it; other changes cause no run, and the applied revision follows them now and then
// ([Store].AdvanceApplied), which keeps retention moving. A change that renders to the very entries that are proved needs no run either.
//
// # What counts
//
// A run of a bundle digest that no verify has confirmed yet is on probation: its apply counts only when a verify, which knows neither
// what was sent nor its hash, has read the same entries back. So a bundle that echoes what it was given never makes a block enforced. A
// verify that finds something else than was proved makes the firewall dirty and puts the bundle back on probation.
//
// # Failures
//
// The first failed run opens the firewall's incident, which lives in the store and ends with the first run that counts. One mail tells of
// it and one of its end; a failure of another kind in between updates the incident without a further mail. Drift, a busy firewall and a
// configuration changed meanwhile are told only when they do not go away at once; repaired drift is told when it is repaired.
package reconcile
