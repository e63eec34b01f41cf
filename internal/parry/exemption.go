package parry

import (
	"net/netip"
	"time"
)

// Exemption is an entry of the never-block list. A block overlaps it when either prefix contains the other.
type Exemption struct {
	ID        ExemptionID
	Prefix    netip.Prefix
	Reason    string
	Source    ExemptionSource
	CreatedBy string
	CreatedAt time.Time
	ExpiresAt time.Time // zero: without end
}

// ExemptionSource is where an exemption comes from; only KindAPI ones can be taken out by request.
type ExemptionSource string

const (
	ExemptAPI    ExemptionSource = "api"
	ExemptConfig ExemptionSource = "config"
	ExemptFound  ExemptionSource = "found"
)
