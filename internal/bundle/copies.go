package bundle

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/rogpeppe/go-internal/diff"

	"github.com/parry/parry/internal/parry"
)

// Copy is a copy that is kept.
type Copy struct {
	Bundle
	Taken   time.Time // when it was made
	Became  time.Time // when it last became current
	Current bool
}

// Stock is what there is of a bundle in this state directory.
type Stock struct {
	Source string // directory
	Copies []Copy // the one that became current last first
	Bad    error  // what the last Refresh found wrong with the source
}

// Stock lists a bundle's copies; one that was damaged is left out.
func (l *Library) Stock(name string) (Stock, error) {
	if !nameRE.MatchString(name) {
		return Stock{}, parry.Errorf(parry.KindNotFound, "%q is no bundle's name", name)
	}
	s := l.shelf(name)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.now == nil {
		l.restore(s, name)
	}
	st := Stock{Source: filepath.Join(l.root, name), Bad: s.last}
	entries, err := os.ReadDir(filepath.Join(l.dir, name))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return st, fmt.Errorf("bundle %s: %w", name, err)
	}
	for _, e := range entries {
		if !e.IsDir() || !digestRE.MatchString(e.Name()) {
			continue
		}
		b, err := l.load(s, name, e.Name())
		if err != nil {
			l.log.Warn("a copy of a bundle cannot be used", "bundle", name, "digest", e.Name(), "err", err)
			continue
		}
		o, became := l.origin(name, e.Name())
		st.Copies = append(st.Copies, Copy{*b, o.Taken, became, s.now != nil && s.now.Digest == b.Digest})
	}
	slices.SortStableFunc(st.Copies, func(a, b Copy) int { return b.Became.Compare(a.Became) })
	return st, nil
}

// Find returns the one copy whose digest begins so.
func (l *Library) Find(name, prefix string) (Bundle, error) {
	st, err := l.Stock(name)
	if err != nil {
		return Bundle{}, err
	}
	var found []Copy
	for _, c := range st.Copies {
		if prefix != "" && strings.HasPrefix(c.Digest, prefix) {
			found = append(found, c)
		}
	}
	switch len(found) {
	case 0:
		return Bundle{}, parry.Errorf(parry.KindNotFound, "this host has no copy of bundle %s whose digest begins with %q: `parry bundles list %s` shows those that it has; "+
			"put another version into %s and run `parry bundles check %s`", name, prefix, name, st.Source, name)
	case 1:
		return found[0].Bundle, nil
	}
	words := make([]string, len(found))
	for i, c := range found {
		words[i] = c.Digest[:16]
	}
	return Bundle{}, parry.Invalid("/digest", "%q is the beginning of several: %s; write more of it", prefix, strings.Join(words, ", "))
}

// What a diff shows at most.
const (
	maxDiff     = 512 << 10
	maxDiffFile = 256 << 10
)

// Diff tells how two trees of a bundle differ, as a unified diff of their files; an empty digest is the source as it is now. It is bounded: a file
// that is large or no text is only named, and what would go beyond is left out.
func (l *Library) Diff(name, from, to string) (text string, whole bool, err error) {
	var trees [2]map[string]treeFile
	for i, d := range []string{from, to} {
		dir := filepath.Join(l.root, name)
		if d != "" {
			b, err := l.Get(name, d)
			if err != nil {
				return "", false, err
			}
			dir = b.Dir
		} else if !nameRE.MatchString(name) {
			return "", false, parry.Errorf(parry.KindNotFound, "%q is no bundle's name", name)
		}
		if trees[i], err = readTree(dir); err != nil {
			return "", false, fmt.Errorf("bundle %s: %w", name, err)
		}
	}
	var out strings.Builder
	names := maps.Clone(trees[0])
	maps.Copy(names, trees[1])
	for _, rel := range slices.Sorted(maps.Keys(names)) {
		a, inA := trees[0][rel]
		b, inB := trees[1][rel]
		part := diffFile(rel, a, b, inA, inB)
		if out.Len()+len(part) > maxDiff {
			return out.String(), false, nil
		}
		out.WriteString(part)
	}
	return out.String(), true, nil
}

type treeFile struct {
	text []byte
	exec bool
}

func readTree(dir string) (map[string]treeFile, error) {
	out := map[string]treeFile{}
	err := walk(dir, func(rel string, info fs.FileInfo) error {
		if info.IsDir() {
			return nil
		}
		b, err := os.ReadFile(filepath.Join(dir, rel))
		out[rel] = treeFile{b, info.Mode()&0o111 != 0}
		return err
	})
	return out, err
}

func diffFile(rel string, a, b treeFile, inA, inB bool) string {
	if inA && inB && a.exec == b.exec && bytes.Equal(a.text, b.text) {
		return ""
	}
	from, to := "a/"+rel, "b/"+rel
	if !inA {
		from = "/dev/null"
	}
	if !inB {
		to = "/dev/null"
	}
	head := ""
	if inA && inB && a.exec != b.exec {
		head = fmt.Sprintf("mode of %s: %s became %s\n", rel, mode(a), mode(b))
	}
	switch {
	case bytes.Equal(a.text, b.text) && inA && inB:
		return head
	case len(a.text) > maxDiffFile, len(b.text) > maxDiffFile, !isText(a.text), !isText(b.text):
		return head + fmt.Sprintf("%s (%d bytes) and %s (%d bytes) differ, and are not shown\n", from, len(a.text), to, len(b.text))
	}
	d := diff.Diff(from, a.text, to, b.text)
	_, d, _ = bytes.Cut(d, []byte{'\n'}) // "diff FROM TO"
	return head + cmp.Or(string(d), fmt.Sprintf("--- %s\n+++ %s\n", from, to))
}

func mode(f treeFile) string {
	if f.exec {
		return "executable"
	}
	return "plain"
}

func isText(b []byte) bool { return utf8.Valid(b) && !bytes.Contains(b, []byte{0}) }
