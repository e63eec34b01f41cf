package parry

// rejectHints say what to do about a reject, by its code: contract 1's and the renderer's.
var rejectHints = map[string]string{
	"destination_is_firewall": "No port forward of the firewall matches this destination, which is its own address: nothing lies behind it. " +
		"Name a port that is forwarded or the inside address, or say under the firewall's nat: what the address means.",
	"too_many_forwards":    "The destination is forwarded to more inside addresses than may stand for a block. Name its port or the inside address.",
	"source_protected":     "The source holds an address of the firewall itself, a gateway, a resolver or parry's host. Block something narrower.",
	"exempt":               "An exemption overlaps the source.",
	"expired":              "The firewall says that the block's time is over, and it is not: its clock is ahead. Set it (NTP); the next run then loads the block.",
	"unknown_interface":    "The firewall has no such interface. Name one of its own, or map the name under the firewall's interfaces:.",
	"unsupported_protocol": "This kind of firewall cannot match the protocol. Leave it out.",
	"inexpressible":        "This kind of firewall has no such match. Leave out what it cannot match.",
	"family_mismatch":      "Source and destination are not of one family.",
	"max_rules":            "Destinations and ports cost rules, and the firewall has as many as it may. Leave them out, or raise max_rules.",
	"capacity":             "The firewall's tables are full. Shorten blocks, or raise its table limit.",
	"malformed":            "The firewall did not understand the entry: the bundle and this parry may not fit together.",
}

// RejectHint says what an operator does about a reject code; empty for one that is not known.
func RejectHint(code string) string { return rejectHints[code] }
