// Package lists keeps the active lists in memory, so that a lookup asks no database, and is the way to everything that is done with them.
//
// # Memory
//
// Every list is an index: a longest-prefix table of addresses and prefixes, or a map of the other keys, behind a lock that lookups share. One place
// writes to it, [Lists.refresh], which reads from the store what changed after the revision that it saw last. It runs when the store tells of a change,
// here or on another replica, and at the end of each call that changes something, so that whoever made a change finds it. An entry that has run out
// never matches, whether it is still in the index or not; a sweep takes such entries out of memory once a minute.
//
// # Hits
//
// A lookup that finds an entry may be told as a syslog line, see [Hit.Text]. The lookup only puts the hit into a bounded queue; when that is full, the
// hit is dropped and counted. Each entry is told of at most once in the list's interval, on each replica.
package lists
