package app

import (
	"context"
	"time"

	"github.com/parry/parry/internal/parry"
)

// note writes to the audit what parry itself does. A database that does not take it is told by the log; what is done is done.
func (a *App) note(ctx context.Context, e parry.AuditEvent) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	if err := a.store.Audit(ctx, e); err != nil {
		a.log.Error("write the audit", "action", string(e.Action), "err", err)
	}
}

// started is the first row of a run of parry, stopped the last; one that was killed has none.
func (a *App) started(ctx context.Context) {
	st := a.state.Load()
	a.note(ctx, parry.AuditEvent{Action: parry.ActStart, Detail: map[string]any{
		"version": a.o.Version, "commit": a.o.Commit, "config_sha256": st.cfg.Digest, "firewalls": len(st.fleet.Firewalls),
	}})
	a.anchor(ctx)
}

func (a *App) stopped(ctx context.Context, cause error) {
	why := ""
	if cause != nil {
		why = cause.Error()
	}
	a.note(ctx, parry.AuditEvent{Action: parry.ActStop, Detail: map[string]string{"version": a.o.Version, "why": why}})
	a.anchor(ctx)
}

// anchor puts the head of the audit into the log, when it has moved. Whoever writes the chain anew in the database cannot reach a log server.
func (a *App) anchor(ctx context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	h, err := a.store.AuditHead(ctx)
	switch {
	case err != nil:
		a.log.Error("read the head of the audit", "err", err)
	case !h.Tail:
		a.log.Error("the audit was cut: its newest rows are missing", "seq", h.Seq, "hash", h.Hash)
	case h.Seq != a.anchored:
		a.anchored = h.Seq
		a.log.Info("audit head", "seq", h.Seq, "hash", h.Hash)
	}
}
