package testenv

import (
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
	"unicode/utf16"
	"unicode/utf8"
)

// Receiver plays a server that notifications are posted to, with its own wire format, as strict as the real one. Its methods may be called
// from any goroutine.
type Receiver struct {
	URL    string
	CAFile string // trusts its certificate, when it is one with TLS

	server *httptest.Server
	take   func(r *http.Request, body []byte) (status int, answer any)

	mu     sync.Mutex
	slow   time.Duration
	fault  string
	times  int
	tries  int
	posts  []Posted
	wrong  []string
	news   chan struct{}
	closed chan struct{}
}

// Posted is what was taken.
type Posted struct {
	At     time.Time
	Path   string
	Header http.Header
	Body   []byte
}

func (r *Receiver) start(tb testing.TB, secure bool) {
	r.news, r.closed = make(chan struct{}), make(chan struct{})
	r.server = httptest.NewUnstartedServer(r)
	if secure {
		r.server.StartTLS()
		r.CAFile = filepath.Join(tb.TempDir(), "ca.pem")
		ca := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: r.server.Certificate().Raw})
		if err := os.WriteFile(r.CAFile, ca, 0o600); err != nil {
			tb.Fatal(err)
		}
	} else {
		r.server.Start()
	}
	r.URL = r.server.URL
	tb.Cleanup(func() {
		close(r.closed)
		r.server.CloseClientConnections()
		r.server.Close()
	})
}

// Fault makes the next so many requests fail (0: all, until the next call). Kinds: "429" and "429-body" (with a wait of a second, in the header
// or the Bot API's body), "500", "503", "hang" (never answers), "taken" (takes it and never answers), "refuse" (breaks off), "redirect",
// "endless" (takes it and sends an answer without end), "401", "400", "off".
func (r *Receiver) Fault(kind string, times int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.fault, r.times = kind, times; kind == "off" {
		r.fault = ""
	}
}

// Slow makes each request take so long, half of it before what was sent is taken: a client that has gone by then is not heard.
func (r *Receiver) Slow(d time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.slow = d
}

// pause waits; false when the client has gone meanwhile.
func (r *Receiver) pause(req *http.Request) bool {
	r.mu.Lock()
	d := r.slow / 2
	r.mu.Unlock()
	if d == 0 {
		return true
	}
	select {
	case <-time.After(d):
		return true
	case <-req.Context().Done():
		return false
	}
}

func (r *Receiver) next() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.tries++
	f := r.fault
	if f != "" && r.times > 0 {
		if r.times--; r.times == 0 {
			r.fault = ""
		}
	}
	return f
}

// Tries counts the requests.
func (r *Receiver) Tries() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.tries
}

// Posts returns what was taken.
func (r *Receiver) Posts() []Posted {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.posts)
}

// Wrong tells what was refused as malformed.
func (r *Receiver) Wrong() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.wrong)
}

// Wait returns what was taken once there are n, or after a while what there is.
func (r *Receiver) Wait(n int, atMost time.Duration) []Posted {
	timeout := time.After(atMost)
	for {
		r.mu.Lock()
		news, have := r.news, len(r.posts)
		r.mu.Unlock()
		if have >= n {
			return r.Posts()
		}
		select {
		case <-news:
		case <-timeout:
			return r.Posts()
		}
	}
}

func (r *Receiver) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	body, err := io.ReadAll(req.Body)
	if err != nil {
		return
	}
	fault := r.next()
	hang := func() {
		select {
		case <-req.Context().Done():
		case <-r.closed:
		}
		panic(http.ErrAbortHandler)
	}
	switch fault {
	case "429":
		w.Header().Set("Retry-After", "1")
		answer(w, http.StatusTooManyRequests, map[string]any{"type": "TooManyRequests", "message": "slow down"})
		return
	case "429-body":
		answer(w, http.StatusTooManyRequests, map[string]any{"ok": false, "error_code": 429, "description": "Too Many Requests: retry after 1",
			"parameters": map[string]any{"retry_after": 1}})
		return
	case "500", "503", "401", "400":
		n, _ := strconv.Atoi(fault)
		answer(w, n, map[string]any{"ok": false, "error_code": n, "description": "fault " + req.URL.Path, "type": "Error", "message": "fault"})
		return
	case "redirect":
		http.Redirect(w, req, r.URL+"/elsewhere", http.StatusTemporaryRedirect)
		return
	case "hang":
		hang()
	case "refuse":
		panic(http.ErrAbortHandler)
	}
	if !r.pause(req) {
		return
	}
	status, what := r.take(req, body)
	if status < 300 && req.Method == http.MethodPost && !strings.HasSuffix(req.URL.Path, "/getChat") {
		r.mu.Lock()
		r.posts = append(r.posts, Posted{time.Now(), req.URL.Path, req.Header.Clone(), body})
		close(r.news)
		r.news = make(chan struct{})
		r.mu.Unlock()
	} else if status >= 400 {
		r.mu.Lock()
		r.wrong = append(r.wrong, fmt.Sprintf("%d %v: %s", status, what, body))
		r.mu.Unlock()
	}
	r.pause(req)
	switch fault {
	case "taken":
		hang()
	case "endless":
		w.WriteHeader(status)
		for chunk := make([]byte, 64<<10); req.Context().Err() == nil; {
			if _, err := w.Write(chunk); err != nil {
				return
			}
		}
		return
	}
	answer(w, status, what)
}

func answer(w http.ResponseWriter, status int, what any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	if what != nil {
		_ = json.NewEncoder(w).Encode(what)
	}
}

// StartWebhook starts a receiver with TLS that takes JSON at /hook.
func StartWebhook(tb testing.TB) *Receiver {
	tb.Helper()
	r := &Receiver{}
	r.take = func(req *http.Request, body []byte) (int, any) {
		switch {
		case req.URL.Path != "/hook":
			return http.StatusNotFound, nil
		case req.Method != http.MethodPost:
			return http.StatusMethodNotAllowed, nil
		case req.Header.Get("Content-Type") != "application/json" || !json.Valid(body) || !utf8.Valid(body):
			return http.StatusBadRequest, "no JSON"
		}
		return http.StatusOK, map[string]any{"taken": true}
	}
	r.start(tb, true)
	return r
}

// TelegramToken is the bot's, TelegramChat the one chat that it knows.
const (
	TelegramToken = "123456:AAbbCCddEEffGGhhIIjjKKllMMnnOOppQQr"
	TelegramChat  = "-1001234567890"
)

// StartTelegram starts a Bot API server, in the clear, with getMe, getChat and sendMessage.
func StartTelegram(tb testing.TB) *Receiver {
	tb.Helper()
	r := &Receiver{}
	no := func(code int, text string) (int, any) {
		return code, map[string]any{"ok": false, "error_code": code, "description": text}
	}
	yes := func(result any) (int, any) { return http.StatusOK, map[string]any{"ok": true, "result": result} }
	var messages int
	var mu sync.Mutex
	r.take = func(req *http.Request, body []byte) (int, any) {
		method, ok := strings.CutPrefix(req.URL.Path, "/bot"+TelegramToken+"/")
		if !ok {
			return no(http.StatusUnauthorized, "Unauthorized")
		}
		var m struct {
			ChatID  string          `json:"chat_id"`
			Text    string          `json:"text"`
			Preview map[string]bool `json:"link_preview_options"`
			NoPage  bool            `json:"disable_web_page_preview"`
			Quiet   bool            `json:"disable_notification"`
		}
		if len(body) > 0 {
			dec := json.NewDecoder(strings.NewReader(string(body)))
			dec.DisallowUnknownFields() // parse_mode, above all
			if err := dec.Decode(&m); err != nil {
				return no(http.StatusBadRequest, "Bad Request: "+err.Error())
			}
		}
		switch method {
		case "getMe":
			return yes(map[string]any{"id": 123456, "is_bot": true, "first_name": "parry", "username": "parry_bot"})
		case "getChat", "sendMessage":
			if m.ChatID != TelegramChat {
				return no(http.StatusBadRequest, "Bad Request: chat not found")
			}
			if method == "getChat" {
				return yes(map[string]any{"id": -1001234567890, "type": "supergroup", "title": "soc"})
			}
			switch {
			case strings.TrimSpace(m.Text) == "":
				return no(http.StatusBadRequest, "Bad Request: message text is empty")
			case len(utf16.Encode([]rune(m.Text))) > 4096:
				return no(http.StatusBadRequest, "Bad Request: message is too long")
			case !utf8.Valid(body):
				return no(http.StatusBadRequest, "Bad Request: strings must be encoded in UTF-8")
			}
			mu.Lock()
			defer mu.Unlock()
			messages++
			return yes(map[string]any{"message_id": messages, "date": time.Now().Unix(), "text": m.Text})
		}
		return no(http.StatusNotFound, "Not Found")
	}
	r.start(tb, false)
	return r
}

// TheHiveKey is a user's who may create alerts in the organisation soc.
const TheHiveKey = "dGhlaGl2ZS1rZXktZm9yLXRlc3Rz"

// StartTheHive starts a TheHive 5 with both forms of its API, in the clear. It refuses what the real one refuses: an alert that lacks a
// required field or whose fields are too long or of another type, an unknown type of observable, an observable twice, and an alert whose type,
// source and sourceRef it has.
func StartTheHive(tb testing.TB) *Receiver {
	tb.Helper()
	r := &Receiver{}
	var mu sync.Mutex
	known := map[string]bool{}
	r.take = func(req *http.Request, body []byte) (int, any) {
		bad := func(kind, format string, a ...any) (int, any) {
			return http.StatusBadRequest, map[string]any{"type": kind, "message": fmt.Sprintf(format, a...)}
		}
		if req.Header.Get("Authorization") != "Bearer "+TheHiveKey {
			return http.StatusUnauthorized, map[string]any{"type": "AuthenticationError", "message": "Authentication failure"}
		}
		if o := req.Header.Get("X-Organisation"); o != "" && o != "soc" {
			return http.StatusForbidden, map[string]any{"type": "AuthorizationError", "message": "You have no permission in " + o}
		}
		list := "observables"
		switch req.Method + " " + req.URL.Path {
		case "GET /api/v1/user/current":
			return http.StatusOK, map[string]any{"_id": "~1", "_type": "User", "login": "parry@soc.example"}
		case "GET /api/user/current":
			return http.StatusOK, map[string]any{"id": "parry@soc.example"}
		case "POST /api/v1/alert":
		case "POST /api/alert":
			list = "artifacts"
		default:
			return http.StatusNotFound, map[string]any{"type": "NotFoundError", "message": "not found"}
		}
		var a map[string]any
		if err := json.Unmarshal(body, &a); err != nil {
			return bad("BadRequest", "Invalid Json")
		}
		for field, most := range map[string]int{"type": 32, "source": 64, "sourceRef": 128, "title": 512, "description": 1 << 20} {
			s, ok := a[field].(string)
			if n := utf8.RuneCountInString(s); !ok || n == 0 || n > most {
				return bad("AttributeCheckingError", "[%s]: 1 to %d characters", field, most)
			}
		}
		if n, ok := a["severity"].(float64); !ok || n < 1 || n > 4 || n != float64(int(n)) {
			return bad("AttributeCheckingError", "[severity]: 1 to 4")
		}
		if n, ok := a["date"].(float64); !ok || n < 1e12 || n > 1e14 {
			return bad("AttributeCheckingError", "[date]: milliseconds")
		}
		tags, _ := a["tags"].([]any)
		for _, t := range tags {
			if s, ok := t.(string); !ok || s == "" || utf8.RuneCountInString(s) > 128 {
				return bad("AttributeCheckingError", "[tags]: 1 to 128 characters")
			}
		}
		seen := map[string]bool{}
		items, _ := a[list].([]any)
		for _, item := range items {
			o, _ := item.(map[string]any)
			data, _ := o["data"].(string)
			kind, _ := o["dataType"].(string)
			switch {
			case !slices.Contains([]string{"ip", "domain", "other"}, kind) || data == "" || utf8.RuneCountInString(data) > 4096:
				return bad("AttributeCheckingError", "[%s]: %v", list, item)
			case seen[data]:
				return bad("CreateError", "Observable already exists")
			}
			seen[data] = true
		}
		if len(items) > 100 {
			return bad("AttributeCheckingError", "[%s]: too many", list)
		}
		key := fmt.Sprint(a["type"], ":", a["source"], ":", a["sourceRef"])
		mu.Lock()
		defer mu.Unlock()
		if known[key] {
			return bad("CreateError", "Alert %s already exist in organisation soc-observables", key)
		}
		known[key] = true
		return http.StatusCreated, map[string]any{"_id": "~" + strconv.Itoa(len(known)), "_type": "Alert", "status": "New"}
	}
	r.start(tb, false)
	return r
}
