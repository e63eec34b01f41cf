package testenv

import (
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/procfs"
)

// MeasureCPU begins to measure, for a machine that others run on, too. What it returns reports until then: cpu-us, the processor time of this
// process for an operation in microseconds, and stolen-%, the part that the machine's host kept of the processor time that was wanted.
func MeasureCPU(b *testing.B) (report func()) {
	b.Helper()
	used, wanted, stolen := cpu(b)
	return func() {
		b.Helper()
		u, w, s := cpu(b)
		b.ReportMetric(float64((u-used).Microseconds())/float64(b.N), "cpu-us")
		b.ReportMetric(100*(s-stolen)/max(w-wanted, 1e-9), "stolen-%")
	}
}

// cpu tells the time that this process has used, and, in seconds, what all have wanted and what of it the host kept.
func cpu(tb testing.TB) (used time.Duration, wanted, stolen float64) {
	tb.Helper()
	fs, err := procfs.NewDefaultFS()
	if err != nil {
		tb.Fatal(err)
	}
	stat, err := fs.Stat()
	if err != nil {
		tb.Fatal(err)
	}
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		tb.Fatal(err)
	}
	c := stat.CPUTotal
	return time.Duration(u.Utime.Nano() + u.Stime.Nano()), c.User + c.Nice + c.System + c.IRQ + c.SoftIRQ + c.Steal, c.Steal
}
