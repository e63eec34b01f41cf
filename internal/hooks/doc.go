// Package hooks reads what SIEMs send when they call parry by themselves: it takes a Wazuh alert and says which block it asks for, or why
// none. It is pure: no clock, no file, no network.
//
// An alert is foreign and hostile. Its fields hold what an attacker wrote into a log, of any JSON type, so [ReadWazuh] takes whatever is
// one JSON object of bounded size and depth, and a field that is not what it should be counts as missing. Only one thing in it becomes part of
// a block: a source that parses as an address. All else is inert text, cut to what evidence may hold.
//
// The source is looked for in a list of places (places.go), because each of Wazuh's decoders has a place of its own. The first place that
// holds anything decides: a host's name there is a reason for no block rather than for looking on, since another place may hold another
// machine. agent.ip is never a source. Nor is our own side: an event that goes from inside to the outside names an internal host as its
// source, and to block that would do the attacker's work.
package hooks
