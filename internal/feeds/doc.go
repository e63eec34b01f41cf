// Package feeds publishes the live blocks and the active lists to those who fetch lists of addresses: firewalls that parry does not manage,
// intrusion detection, proxies, SIEMs. Each consumer gets the form that it reads.
//
// # From the database to the bytes
//
// [Feeds.Run] reads what changed, at most once in Options.MaxAge, and makes an immutable snapshot of each feed: sorted entries, and the
// revision as of which they are. A request never queries the database. What it asks for (format, family, limit, …) is rendered once for each
// snapshot, kept with its hash and, when somebody takes that, its gzip form, in a cache that is bounded in bytes.
//
// An entity tag is the hash of the bytes, so that a consumer which has them is not sent them again, whichever replica it asks and however
// often parry was restarted. Nothing in the bytes depends on the time of the request.
//
// # Failure
//
// A consumer that gets an error keeps the list it has; one that gets an empty or foreign body may drop every block. So a feed is never
// empty (a comment line stands for nothing), and while the database cannot be read the last snapshot is served until it is older than
// Options.StaleAfter; from then on, and before the first one, the answer is [parry.KindUnavailable].
//
// Entries go when parry has ended them, never by the clock alone.
package feeds
