// Package parry holds the nouns of the product: Block, Request, Firewall, Run, Exemption, Token, and the error kinds that every layer
// speaks. It imports the standard library only, so that any package may import it.
//
// # One idea
//
// A request changes the desired state and is answered; a lane per firewall makes the firewall equal to it and proves that. Every writing
// transaction takes the next [Revision] first, so revision order is commit order. What a block is on a firewall is never stored: [Derive]
// reads it off the block's revisions, the firewall's, and the firewall's rejects.
package parry
