//go:build !unix

package node

// modesCount says that file modes keep other users out on this system. Elsewhere the
// profile directory's access list does that.
const modesCount = false

func closeProcess() {}
