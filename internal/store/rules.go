package store

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/parry/parry/internal/parry"
)

// ruleKey names a row of table rules.
type ruleKey struct{ rule, selector string }

type ruleDelta struct {
	live int64
	gone bool // a block that needed it has ended
}

// rule counts a block that needs a rule (n is 1), or no longer does (-1). The rows are written at the transaction's end.
func (t *tx) rule(k *parry.Key, n int64) {
	if t.rules == nil {
		t.rules = map[ruleKey]*ruleDelta{}
	}
	rk := ruleKey{formatRule(&k.Match), string(k.Selector)}
	d := t.rules[rk]
	if d == nil {
		d = &ruleDelta{}
		t.rules[rk] = d
	}
	d.live += n
	d.gone = d.gone || n < 0
}

func (t *tx) writeRules() error {
	if len(t.rules) == 0 {
		return nil
	}
	keys := slices.SortedFunc(maps.Keys(t.rules), func(a, b ruleKey) int {
		return strings.Compare(a.rule+" "+a.selector, b.rule+" "+b.selector)
	})
	rows := make([]any, 0, 4*len(keys))
	for _, k := range keys {
		var gone int64
		if t.rules[k].gone {
			gone = micros(t.now)
		}
		rows = append(rows, k.rule, k.selector, t.rules[k].live, gone)
	}
	t.rules = nil
	return t.insert(`INSERT INTO rules (rule, selector, live, gone_at) VALUES `, 4, rows, ` ON CONFLICT (rule, selector) DO UPDATE
		SET live = rules.live + excluded.live, gone_at = CASE WHEN excluded.gone_at > 0 THEN excluded.gone_at ELSE rules.gone_at END`)
}

// ruleFits tells whether a new block with this match stays within the request's MaxRules. The source-only rule always does.
func (t *tx) ruleFits(p *put, m *parry.Match) (bool, error) {
	if p.MaxRules <= 0 || *m == (parry.Match{Source: m.Source, Interface: m.Interface}) {
		return true, nil
	}
	rule := formatRule(m)
	scope := make([]any, 0, len(p.RuleScope)+2)
	for _, s := range p.RuleScope {
		if d := t.rules[ruleKey{rule, string(s)}]; d != nil && (d.live > 0 || d.gone) {
			return true, nil // this batch uses it already
		}
		scope = append(scope, string(s))
	}
	if len(scope) == 0 {
		return true, nil
	}
	// What this batch added or ended is written only now, so that one statement sees everything.
	if err := t.writeRules(); err != nil {
		return false, err
	}
	in := placeholders(3, len(scope))
	var named strings.Builder // of a selector's several names, one in scope is enough
	for i := range scope {
		fmt.Fprintf(&named, ` OR replace(',' || selector || ',', ',' || $%d || ',', '') <> ',' || selector || ','`, i+3)
	}
	args := append([]any{rule, micros(t.now.Add(-ruleStays))}, scope...)
	var used, mine int64
	err := t.row(fmt.Sprintf(`SELECT count(DISTINCT rule), count(CASE WHEN rule = $1 THEN 1 END) FROM rules
		WHERE (live > 0 OR gone_at > $2) AND (selector IN (%s) OR selector LIKE '%%,%%' AND (1 = 0%s))`, in, &named), args, &used, &mine)
	return mine > 0 || used < int64(p.MaxRules), err
}
