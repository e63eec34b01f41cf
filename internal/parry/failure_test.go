package parry

import "testing"

func TestFailures_eachHasAHint(t *testing.T) {
	t.Parallel()
	for _, f := range Failures {
		if Hint(f) == "" {
			t.Errorf("failure %s has no hint", f)
		}
	}
	if got, want := len(hints), len(Failures); got != want {
		t.Errorf("%d hints for %d failures", got, want)
	}
	if got, want := FailAuthentication.Pace(), PaceSlow; got != want {
		t.Errorf("authentication is retried at pace %s, want %s", got, want)
	}
	if got, want := Failure("unheard of").Pace(), PaceUsual; got != want {
		t.Errorf("an unknown failure is retried at pace %s, want %s", got, want)
	}
}
