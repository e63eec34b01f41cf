package hooks_test

import (
	"testing"

	"github.com/parry/parry/internal/hooks"
)

func BenchmarkJudge(b *testing.B) {
	doc, s := alert(b, "suricata_inbound"), hooks.Settings{Internal: ours}
	b.SetBytes(int64(len(doc)))
	b.ReportAllocs()
	for b.Loop() {
		a, err := hooks.ReadWazuh(doc)
		if err != nil || s.Judge(a).Code != "" {
			b.Fatal(err)
		}
	}
}
