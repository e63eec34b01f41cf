package store

import (
	"context"
	"errors"

	"github.com/parry/parry/internal/parry"
)

// Recommit runs a batch of requests whose commit succeeded although nobody learned of it: each is put, and then tried again as the writer does
// after a failed batch. It gives the answers of the second try.
func (s *Store) Recommit(ctx context.Context, as ...parry.Admission) ([]parry.Admitted, error) {
	ops := make([]*op, len(as))
	for i, a := range as {
		ops[i] = &op{put: newPut(ctx, a)}
	}
	for _, again := range []bool{false, true} {
		if err := s.write(ctx, "put", func(t *tx) error { t.again = again; return t.putAll(ops) }); err != nil {
			return nil, err
		}
	}
	var out []parry.Admitted
	var errs []error
	for _, o := range ops {
		out, errs = append(out, o.put.res), append(errs, o.err)
	}
	return out, errors.Join(errs...)
}

// RequestIDs lists the ids of a block's stored requests.
func (s *Store) RequestIDs(ctx context.Context, id parry.BlockID) (ids []parry.RequestID, err error) {
	for next := ""; ; {
		p, err := s.Requests(ctx, id, next, 1000)
		if err != nil {
			return nil, err
		}
		for _, q := range p.Items {
			ids = append(ids, q.ID)
		}
		if next = p.Next; next == "" {
			return ids, nil
		}
	}
}

// RecommitEntries puts on a list as if the answer of the commit had been lost.
func (s *Store) RecommitEntries(ctx context.Context, list string, puts []parry.ListPut) error {
	for _, again := range []bool{false, true} {
		if err := s.write(ctx, "put", func(t *tx) error { t.again = again; return t.putEntries(list, "batch", puts, &parry.ListDone{}) }); err != nil {
			return err
		}
	}
	return nil
}

// RetryWrite writes to the audit as if the answer of the commit had been lost.
func (s *Store) RetryWrite(ctx context.Context, e parry.AuditEvent) error {
	o := &op{fn: func(t *tx) error { t.auditBy(t.by, e.Action, e.Object, "done", e.Detail); return nil }, by: parry.ActorOf(ctx)}
	for _, again := range []bool{false, true} {
		if err := s.write(ctx, "write twice", func(t *tx) error {
			was := t.again
			defer func() { t.again = was }()
			t.again = again
			return errors.Join(t.do(o), o.err)
		}); err != nil {
			return err
		}
	}
	return nil
}
