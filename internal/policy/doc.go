// Package policy says what may be blocked, for how long, and by whom. It is pure: it reads no clock, no file and no database, and is asked
// with the time of the question.
//
// Three things can say no. The never-block list: special ranges that parry knows by itself, and exemptions from requests, from the
// configuration, and found ones. Overlap is tested in both directions, since a block of a prefix that contains a protected address drops
// that too, and it looks through NAT64, 6to4 and Teredo at the IPv4 address inside. Limits: how wide a prefix may be and how long a block
// may stand. And the rights of whoever asks.
//
// The list is asked at admission and again when a firewall's entries are rendered, so that what changed in between is caught.
package policy
