// Package store keeps the desired state and what is known of the firewalls, in SQLite or PostgreSQL. It is the only package that knows SQL.
//
// # One SQL text
//
// Both engines run the same statements: $1 parameters, RETURNING, ON CONFLICT, columns of text, bigint and bytea (blob). Times are Unix
// microseconds, 0 for none. Hostile free text is kept as bytes, because PostgreSQL's text takes neither NUL nor invalid UTF-8. What must
// differ (opening, locking, waking other replicas, how many rows share a statement) is in sqlite.go and postgres.go.
//
// # Revisions
//
// Every writing transaction first takes the next revision with UPDATE … RETURNING on the one row of table state. The row stays locked until
// the commit, so that revision order is commit order and, on PostgreSQL too, all writers are serialised: what a writing transaction reads
// cannot change under it. The same row counts the live and the ended blocks, exactly.
//
// # Group commit
//
// One goroutine writes. It takes what queued while the last commit was on, at most 512 operations, runs them in one transaction, commits
// and only then answers. Where the last commit answered many and few have come since, it waits a moment for half of them; a lone
// caller waits for nothing but its own commit. An operation that is refused has written nothing, and the others go on. When the transaction fails, each operation is tried once more in a transaction of its own; ids were made beforehand and
// are looked up then, so that a commit which succeeded although its answer was lost counts nothing twice. A caller's cancelled context
// ends its waiting, never the batch.
//
// # Put
//
// The order of decisions is fixed, and requests of one batch are decided in the order in which they queued:
//
//  1. The idempotency key: seen with this body's hash, the first answer again; seen with another, refused.
//  2. A grace of the source, or of a prefix that holds it: refused, but for an operator, whose request ends it.
//  3. A live block of the key that is due is ended as expired.
//  4. A request past its time (event + TTL is not after now), or not newer than an operator's delete of the key, is evidence only. It is
//     counted on the live block without extending it, else on the key's newest ended block, else on a block that is born ended.
//  5. A live block of the key is refreshed: its end moves out to event + TTL (or its rung's least) within the cap, never in; without end
//     stays without end.
//  6. Promotion: with enough sources of the prefix, that becomes the block's source, and 3 to 5 are decided again for that key.
//  7. MaxRules: a rule (family, destination, protocol, port, interface) that is not in use in scope and would be one too many is refused, or
//     widened to its source, and 3 to 5 are decided again for that key. A rule is in use while a live block needs it and 24 hours after, because
//     it stays on the firewall for so long. The source-only rule is counted and never refused: it is what everything else falls back to.
//     A request of a simulated rule skips 6, 7 and 9, makes a block that is simulated, and refreshes none that is real. One that is not simulated
//     passes by a simulated block of the key, and what it would make in 9 becomes of that.
//  8. MaxBlocks, against the live blocks at this point of the batch.
//  9. A new block. If none of the offender's stands, it is an offence: counted, and its rung is the least lifetime.
//
// Entries that come with a request for active lists are put in its transaction, after all this; a list that has no room for them costs no block.
//
// # Active lists
//
// A list is a row, an entry is one of (list, key). An entry that has run out stays in place until it is swept, an hour later, and one that was
// taken off is marked and stays a week: so whoever reads the changes after a revision learns of removals too, and a replayed event does not put back
// what an operator took off. Nothing reads such an entry as live. Reading is for package lists, which keeps what stands in memory.
package store
