// The windows of a run, which all its clients share: [phase, begin, counts from, end] in ms since the epoch.
const fields = ([phase, begin, counts, end]) => ({ phase, begin, counts, end });

export const windows = JSON.parse(__ENV.WINDOWS).map(fields);
const phases = [...new Set(windows.map((window) => window.phase))];

// How long a run takes that begins now.
export function duration() {
  return `${Math.ceil((windows[windows.length - 1].end - Date.now()) / 1000)}s`;
}

// The phase in which something counts that began at a moment, if it does.
export function counted(began) {
  const window = windows.find((each) => began >= each.counts && began < each.end);
  return window && window.phase;
}

// What a client waited for an answer, with the connection that it may have had to make.
export function waited({ timings }) {
  return timings.blocked + timings.connecting + timings.tls_handshaking + timings.duration;
}

// Metrics that get lines of their own in the summary, by phase, for they are named here.
export function lines(metrics, ops) {
  const tags = phases.flatMap((phase) => [`phase:${phase}`, ...ops.map((op) => `phase:${phase},op:${op}`)]);
  return Object.fromEntries(metrics.flatMap((metric) => tags.map((tag) => [`${metric}{${tag}}`, []])));
}
