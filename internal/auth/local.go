package auth

import (
	"context"
	"net"

	"golang.org/x/sys/unix"

	"github.com/parry/parry/internal/parry"
)

// LocalName is the name that root at the local socket acts under; no token can have it.
const LocalName = "local"

type peerKey struct{}

// ConnContext is for [net/http.Server]: it notes the user at the other end of a unix socket's connection, as the kernel tells it.
func ConnContext(ctx context.Context, c net.Conn) context.Context {
	uc, ok := c.(*net.UnixConn)
	if !ok {
		return ctx
	}
	raw, err := uc.SyscallConn()
	if err != nil {
		return ctx
	}
	var cred *unix.Ucred
	if cerr := raw.Control(func(fd uintptr) { cred, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) }); cerr != nil || err != nil {
		return ctx
	}
	return context.WithValue(ctx, peerKey{}, cred.Uid)
}

// Local is root at the other end of the local socket, with an administrator's rights; nil for everyone else.
func Local(ctx context.Context) *parry.Principal {
	if uid, ok := ctx.Value(peerKey{}).(uint32); !ok || uid != 0 {
		return nil
	}
	return &parry.Principal{Token: parry.Token{Name: LocalName, Role: parry.RoleAdmin}}
}
