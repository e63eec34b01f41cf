// Package portable is the form in which blocks, exemptions and list entries leave one parry and come into another: JSON lines or CSV, row by
// row, so that neither side holds more than a row.
//
// # JSON lines
//
// The first line says what follows, then each line is one row:
//
//	{"parry":"blocks","version":1,"exported_at":"2026-03-01T12:00:00Z"}
//	{"source":"203.0.113.7","firewalls":["default"],"expires_at":"2026-03-01T16:00:00Z","reason":"ssh brute force"}
//
// A file without the first line is read as version 1; one that was joined of several has several such lines. A later version is refused; unknown
// members of a row are, too.
//
// # CSV
//
// RFC 4180 with a header row; columns may be left out and stand in any order, unknown ones are refused. A cell that a spreadsheet would take
// for a formula is written behind an apostrophe, and so is one that begins with an apostrophe; reading takes one leading apostrophe away, so
// that every text comes back exactly, line ends included.
package portable
