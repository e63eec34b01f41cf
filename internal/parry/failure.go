package parry

// Pace is how a failing firewall is tried again. Every pace is exponential, capped and jittered; the figures are the reconciler's.
type Pace string

const (
	PaceQuick Pace = "quick" // gone in a moment: somebody else was writing
	PaceUsual Pace = "usual"
	PaceSlow  Pace = "slow" // trying again does harm (a firewall locks out who fails to log in) or cannot help before somebody acts
)

// hints holds, for each failure, how it is retried and what an operator does about it.
var hints = map[Failure]struct {
	pace Pace
	hint string
}{
	FailUnreachable: {PaceUsual, "Check that the firewall is up and that ssh to it is allowed from this host (address, port, firewall rules, routing). " +
		"parry tries again by itself."},
	FailAuthentication: {PaceSlow, "The firewall refused parry's ssh key. Put the public key back for the user of the inventory, or correct the user and the key. " +
		"Tried again seldom, so as not to be locked out; `parry firewalls retry` tries at once."},
	FailHostKey: {PaceUsual, "The firewall's host key is not the pinned one. If the firewall was reinstalled, compare the fingerprint on its console " +
		"and pin the new key in known_hosts; else somebody may sit in between: do not accept it."},
	FailTimeout: {PaceUsual, "The run was ended at its deadline; what it did is unknown and is verified next. Look at the firewall's load and at the last task in the log; " +
		"raise ansible.deadline if it is only slow."},
	FailCancelled: {PaceUsual, "The run was ended by a shutdown of parry; the next start verifies it. Nothing to do."},
	FailPlaybook: {PaceUsual, "Ansible stopped before it reached the firewall. Correct the playbook that the message names, or go back with `parry bundles rollback`; " +
		"try it with ansible-playbook --syntax-check."},
	FailInventory: {PaceUsual, "The inventory lacks this firewall or its address. Add the host with ansible_host and reload parry."},
	FailTask:      {PaceUsual, "A task of the playbook failed. Read its message and the run's log, and run the command below by hand to see more (-vvv)."},
	FailProof: {PaceUsual, "The firewall holds something else than parry sent. Somebody changes parry's tables or rules, or the bundle reads back wrongly: " +
		"compare the run's desired.txt (and exempt.txt) with the firewall's tables."},
	FailNoProof: {PaceUsual, "The playbook ended without its proof. The bundle must answer with set_stats as contract 1 says: check its version."},
	FailStaleEpoch: {PaceSlow, "The firewall has seen a newer parry database than this one: a backup was restored, or a second parry runs. Make sure that only this one runs, " +
		"then `parry firewalls adopt`. Entries that this database does not know will be removed."},
	FailStaleRevision: {PaceSlow, "The firewall was brought to a later state than this database knows: a backup was restored. What was blocked since is still in force there. " +
		"Ask again for what shall stay, then `parry firewalls adopt`: it removes what this database does not know."},
	FailForeignController: {PaceSlow, "Another parry controls this firewall. Stop that one or take the firewall out of its configuration, then `parry firewalls adopt`."},
	FailDuplicateMachine: {PaceSlow, "Another firewall of the configuration is the same machine: the message names it. Nothing was changed. Correct the address in the inventory, or take one " +
		"of the two out; on cloned machines make the ids differ (Linux: /etc/machine-id; pfSense: kern.hostuuid)."},
	FailFlushed: {PaceSlow, "Somebody emptied the firewall with flush.yml and left a hold on it. When it may be filled again: `parry firewalls adopt`."},
	FailBusy:    {PaceQuick, "Somebody else holds the firewall's lock: a run by hand, or another parry. parry tries again by itself; if it stays, look for what holds it."},
	FailPFRefused: {PaceUsual, "pf did not load the new ruleset and the change was rolled back. The message names pf's error; " +
		"a rule of the firewall's own may be broken: Status > Filter Reload in its web pages shows it."},
	FailConfigChanged: {PaceQuick, "The firewall's configuration was changed while the run was on. parry tries again by itself."},
	FailStructure:     {PaceUsual, "The secondary has not got the primary's aliases and rules yet. Check the configuration sync of the pair; parry tries again by itself."},
	FailCapacity: {PaceUsual, "The firewall has no room for so many entries. Raise its table limit (pfSense: System > Advanced > Firewall, Maximum Table Entries), " +
		"or shorten blocks."},
	FailBundle: {PaceUsual, "The playbook bundle cannot be used. The message says why: correct the bundle or the firewall's settings, then reload parry."},
	FailApproval: {PaceSlow, "The run would change more than may be changed without somebody's word (a lost database, a changed configuration). Nothing was changed, and nothing is " +
		"applied until that is decided."},
	FailOrphan:   {PaceUsual, "A run of a parry that was killed is still on. parry waits for it to end; if it never does, end that ansible-playbook by hand."},
	FailInternal: {PaceUsual, "parry itself could not do this run: read the message and parry's log (a full disk, a lost database)."},
}

// Failures lists every failure that has a name.
var Failures = []Failure{
	FailUnreachable, FailAuthentication, FailHostKey, FailTimeout, FailCancelled, FailPlaybook, FailInventory, FailTask, FailProof, FailNoProof,
	FailStaleEpoch, FailStaleRevision, FailForeignController, FailDuplicateMachine, FailFlushed, FailBusy, FailPFRefused, FailConfigChanged, FailStructure, FailCapacity, FailBundle,
	FailApproval, FailOrphan, FailInternal,
}

// Hint says what an operator does about a failure.
func Hint(f Failure) string { return hints[f].hint }

// Pace is how the failure is retried; a failure without a name is retried as usual.
func (f Failure) Pace() Pace {
	if h, ok := hints[f]; ok {
		return h.pace
	}
	return PaceUsual
}

// Refused tells whether a failed run cannot have changed anything: it did not get to the firewall, or was turned away there.
func (f Failure) Refused() bool {
	switch f {
	case FailUnreachable, FailAuthentication, FailHostKey, FailPlaybook, FailInventory, FailBundle, FailApproval, FailOrphan, FailBusy:
		return true
	}
	return f.NeedsAdopt()
}

// OfBundle tells whether a new version of a bundle may be to blame, rather than the firewall or the way to it.
func (f Failure) OfBundle() bool {
	switch f {
	case FailPlaybook, FailTask, FailProof, FailNoProof, FailTimeout, FailPFRefused, FailBundle, FailInternal:
		return true
	}
	return false
}

// NeedsAdopt tells whether nothing may be applied until an operator has said adopt.
func (f Failure) NeedsAdopt() bool {
	return f == FailStaleEpoch || f == FailStaleRevision || f == FailForeignController || f == FailFlushed
}
