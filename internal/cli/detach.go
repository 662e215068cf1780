package cli

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"

	"github.com/spf13/cobra"

	"github.com/shoalmesh/shoal"
)

// upDetached starts this program again as a daemon of its own session and waits until it
// is ready.
func (a *app) upDetached(cmd *cobra.Command, o UpOptions) error {
	ctx, cancel := a.bounded(cmd)
	defer cancel()
	if err := os.MkdirAll(o.Home, 0o700); err != nil {
		return shoal.NewError(shoal.Denied, "home", "data directory "+o.Home, "choose another with --home").Because(err)
	}
	log, err := os.OpenFile(logFile(o.Home), os.O_CREATE|os.O_APPEND|os.O_RDWR, 0o600)
	if err != nil {
		return shoal.NewError(shoal.Denied, "log_file", "log file", "").Because(err)
	}
	defer log.Close()
	start, err := log.Seek(0, io.SeekEnd)
	if err != nil {
		return fmt.Errorf("log file %s: %w", log.Name(), err)
	}

	child, err := spawn(upArgs(o), log)
	if err != nil {
		return err
	}
	detach(child.Cmd)
	ready, err := child.start(ctx)
	if err != nil {
		return childFailed(err, log, start)
	}
	pid := child.Process.Pid
	if err := child.Process.Release(); err != nil {
		return fmt.Errorf("let the daemon go: %w", err)
	}
	if a.asJSON() {
		a.printJSON(ready)
		return nil
	}
	a.printReady(ctx, o.Home, ready)
	a.printf("it goes on as process %d and logs to %s; stop it with `shoal down`\n", pid, logFile(o.Home))
	return nil
}

// upArgs is the command line that says o again.
func upArgs(o UpOptions) []string {
	args := []string{"up", "-o", "json", "--home", o.Home}
	add := func(flag, value string) {
		if value != "" {
			args = append(args, flag+"="+value)
		}
	}
	add("--listen", o.Listen)
	add("--http", o.HTTP)
	for _, j := range o.Join {
		add("--join", j)
	}
	add("--psk", o.PSKFile)
	add("--config", o.ConfigFile)
	add("--passphrase-file", o.PassphraseFile)
	add("--log-level", o.LogLevel)
	if o.RequireToken {
		args = append(args, "--require-token")
	}
	return args
}

// child is a daemon that runs as a process of its own.
type child struct {
	*exec.Cmd
	stdout io.ReadCloser
}

// spawn prepares this very program to run with args, its log going to log.
func spawn(args []string, log io.Writer) (*child, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("find this program's own file: %w", err)
	}
	c := exec.Command(self, args...) //nolint:noctx // a daemon outlives the call that starts it
	c.Stderr = log
	c.Env = os.Environ()
	out, err := c.StdoutPipe()
	if err != nil {
		return nil, fmt.Errorf("pipe to the daemon: %w", err)
	}
	return &child{c, out}, nil
}

// childError says that a daemon ended before it was ready.
type childError struct{ code int }

func (e childError) Error() string { return fmt.Sprintf("the daemon ended with code %d", e.code) }

// start starts the daemon and returns its ready line. If that does not come, the process
// has ended when start returns.
func (c *child) start(ctx context.Context) (Ready, error) {
	if err := c.Start(); err != nil {
		return Ready{}, fmt.Errorf("start the daemon: %w", err)
	}
	stop := context.AfterFunc(ctx, func() { _ = c.Process.Kill() })
	line, err := bufio.NewReaderSize(c.stdout, 64<<10).ReadSlice('\n')
	interrupted := !stop()
	var r Ready
	if err == nil {
		err = json.Unmarshal(line, &r)
	}
	if err == nil && !interrupted {
		return r, nil
	}

	_ = c.Process.Kill()
	werr := c.Wait()
	if interrupted {
		return Ready{}, apiError(ctx, ctx.Err())
	}
	var ee *exec.ExitError
	if errors.As(werr, &ee) && ee.ExitCode() > 0 {
		return Ready{}, childError{ee.ExitCode()}
	}
	return Ready{}, fmt.Errorf("the daemon's ready line: %w", err)
}

// childFailed explains with the daemon's own last words why it did not come up.
func childFailed(err error, log *os.File, from int64) error {
	var ce childError
	if !errors.As(err, &ce) {
		return err
	}
	const most = 64 << 10
	end, serr := log.Seek(0, io.SeekEnd)
	if serr != nil {
		return err
	}
	said := make([]byte, min(end-from, most))
	n, _ := log.ReadAt(said, end-int64(len(said)))
	return lastWords(said[:n], ce.code, log.Name())
}

// lastWords makes an error of the JSON diagnostic that ended a daemon's log.
func lastWords(said []byte, code int, logName string) error {
	see := "see " + logName
	lines := bytes.Split(bytes.TrimSpace(said), []byte("\n"))
	var d struct{ Kind, Reason, Message, Hint string }
	last := lines[len(lines)-1]
	if json.Unmarshal(last, &d) == nil && d.Kind != "" {
		if d.Hint != "" {
			see = d.Hint + "; " + see
		}
		return shoal.NewError(shoal.ParseKind(d.Kind), d.Reason, d.Message, see)
	}
	return shoal.NewError(shoal.Internal, "daemon_ended", fmt.Sprintf("the daemon ended with code %d: %s", code, clip(string(last), 300)), see)
}
