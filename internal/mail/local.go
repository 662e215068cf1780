package mail

import "context"

// serveLocal delivers to agents of this node: the same queues, the same transaction at
// the receiving end, no stream and no signature.
func (m *Mailbox) serveLocal(ctx context.Context, p *peer) error {
	told := make(told)
	return m.pump(ctx, p, func(b *batch) error {
		envs := make([]inbound, len(b.picks))
		for i := range b.picks {
			meta, it := b.picks[i].meta, &b.picks[i].item
			envs[i] = inbound{
				header: header{
					version: envelopeVersion, id: it.id, network: m.cfg.Network, from: meta.from, to: meta.to,
					topic: meta.topic, epoch: meta.epoch, seq: it.seq, skipFrom: it.skipFrom,
					created: it.created, expires: it.expires,
				},
				sender: m.ids.agent(meta.from), recipient: m.ids.agent(meta.to), body: it.body,
			}
		}
		m.acked(p, m.apply(ctx, told, envs))
		return ctx.Err()
	})
}
