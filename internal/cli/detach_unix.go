//go:build unix

package cli

import (
	"os"
	"os/exec"
	"syscall"
)

// detach gives c a session of its own, so that neither ctrl-C nor a closed terminal
// reaches it.
func detach(c *exec.Cmd) { c.SysProcAttr = &syscall.SysProcAttr{Setsid: true} }

// ownGroup keeps ctrl-C from c, whose parent stops it in order.
func ownGroup(c *exec.Cmd) { c.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} }

// terminate asks p to stop in order.
func terminate(p *os.Process) error { return p.Signal(syscall.SIGTERM) }
