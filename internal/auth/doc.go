// Package auth tells who asks: a token, as bearer or, where feeds are read, as the password of HTTP basic authentication; or root at the
// other end of the local socket.
//
// A token reads parry_<id>_<secret><crc>. The id finds it in the store, the secret is 160 random bits of which only the SHA-256 is kept,
// and the CRC lets a typing error be told from a wrong token, and a leaked token be recognised by a scanner.
package auth
