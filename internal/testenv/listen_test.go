package testenv

import (
	"os/exec"
	"sync"
	"testing"
)

// An address that was given up is there again, however many children are being started meanwhile.
func TestListen_againWhileChildrenStart(t *testing.T) {
	t.Parallel()
	var children sync.WaitGroup
	defer children.Wait()
	addr := "127.99.0.1:0" // nobody else takes its ports
	for range 50 {
		children.Go(func() { _ = exec.Command("true").Run() })
		l, err := Listen(addr)
		if err != nil {
			t.Fatal(err)
		}
		addr = l.Addr().String()
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
	}
}
