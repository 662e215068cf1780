// Package shoal holds the nouns of the mesh: who ([AgentID], [NodeID]), what is
// carried ([Envelope]), what is done ([TaskKey], [Assignment], [Report]), what is
// proved ([Receipt]), what is paid ([Amount]) and what can go wrong ([Error]).
//
// It promises that a value made by one of its Parse functions is well formed, so
// the packages above can trust it. It does no I/O, keeps no state and imports only
// the standard library, base58, protobuf's wire reader and the A2A types ([a2a.Task], [a2a.Message] …),
// which are our vocabulary for work. Every other package of Shoal may import it.
package shoal
