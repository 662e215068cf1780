package cli

import (
	"os"
	"os/exec"
	"syscall"

	"golang.org/x/sys/windows"
)

// detach gives c no console and a group of its own, so that neither ctrl-C nor a closed
// window reaches it.
func detach(c *exec.Cmd) {
	c.SysProcAttr = &syscall.SysProcAttr{CreationFlags: windows.CREATE_NEW_PROCESS_GROUP | windows.DETACHED_PROCESS}
}

// ownGroup keeps ctrl-C from c, whose parent stops it in order.
func ownGroup(c *exec.Cmd) {
	c.SysProcAttr = &syscall.SysProcAttr{CreationFlags: windows.CREATE_NEW_PROCESS_GROUP}
}

// terminate ends p: Windows has no SIGTERM, and Shutdown over the API came before.
func terminate(p *os.Process) error { return p.Kill() }
