package testenv

import (
	"errors"
	"net"
	"syscall"
	"time"
)

// Listen listens at a TCP address that this process may have listened at a moment ago: a child that is being started holds every socket of its
// parent until its exec, and the address is in use for as long.
func Listen(addr string) (net.Listener, error) {
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		l, err := net.Listen("tcp", addr)
		if !errors.Is(err, syscall.EADDRINUSE) || time.Now().After(end) {
			return l, err
		}
	}
}
