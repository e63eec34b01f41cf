// Package parry holds the nouns of the product: Block, Request, Firewall, Run, Exemption, Principal, and the error kinds that every layer
// speaks. It imports the standard library only, so that any package may import it.
package parry
