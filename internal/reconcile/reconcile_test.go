package reconcile

import (
	"testing"
	"time"

	"github.com/parry/parry/internal/parry"
)

func TestReconcile_aBlockBecomesEnforcedAndIsLiftedAgain(t *testing.T) {
	simulate(t, []string{"fw-a"}, nil, func(w *world) {
		w.idle("fw-a")
		id := w.put("203.0.113.7")
		w.becomes(id, "fw-a", parry.StateEnforced)
		if got, want := w.firewall("fw-a").holds(), []string{"203.0.113.7 - - - wan"}; len(got) != 1 || got[0] != want[0] {
			t.Errorf("the firewall holds %q, want %q", got, want)
		}
		_, _, err := w.store.EndBlock(w.ctx, id, "anna")
		w.must(err)
		w.becomes(id, "fw-a", parry.StateLifted)
		if got := w.firewall("fw-a").holds(); len(got) != 0 {
			t.Errorf("the firewall still holds %q", got)
		}
		for _, r := range w.runs("fw-a") {
			t.Logf("%s %s %s rev %d", r.Kind, r.State, r.Failure, r.Revision)
		}
		if d := w.mails(); len(d) != 0 {
			t.Errorf("mails without a failure: %v", kinds(d))
		}
		_ = time.Second
	})
}
