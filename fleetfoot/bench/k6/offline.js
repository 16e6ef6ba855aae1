// Batch engines: at every tick each makes a burst of pods, looks at its own and at all of the namespace,
// and removes its own, one step after the other's answer (closed loop); one that is late misses ticks.
// Beside it, each keeps a watch of its own pods. In a `storm` ticks are PERIOD seconds apart, `saturated`
// engines never rest, and in every other phase they wait.
import http from 'k6/http';
import exec from 'k6/execution';
import { sleep } from 'k6';
import { Counter, Rate, Trend } from 'k6/metrics';
import { counted, duration, lines, waited, windows } from './windows.js';

const { URL, NAMESPACE, ENGINES, BURST, PERIOD, CERTIFICATE, KEY, SUMMARY } = __ENV;
const place = `${URL}/api/v1/namespaces/${NAMESPACE}/pods`;
const latency = new Trend('latency', true);
const failed = new Rate('failed');
const pods = new Counter('pods');
const watches = new Rate('watches_failed');
const late = new Counter('late');

const periods = { storm: Number(PERIOD) * 1000, saturated: 0 };
const engines = { executor: 'constant-vus', vus: Number(ENGINES), duration: duration() };

export const options = {
  scenarios: {
    work: { ...engines, exec: 'work', gracefulStop: '30s' },
    watch: { ...engines, exec: 'watch', gracefulStop: '0s' },
  },
  tlsAuth: [{ cert: open(CERTIFICATE), key: open(KEY) }],
  discardResponseBodies: true,
  batch: Number(BURST),
  batchPerHost: Number(BURST),
  summaryTrendStats: ['p(50)', 'p(99)', 'max', 'count'],
  thresholds: lines(['latency', 'failed', 'pods', 'watches_failed'], ['create', 'list', 'delete']),
};

function manifest(name, engine) {
  return JSON.stringify({
    apiVersion: 'v1',
    kind: 'Pod',
    metadata: { name, labels: { engine } },
    spec: {
      containers: [
        { name: 'task', image: 'batch/task', resources: { requests: { cpu: '100m', memory: '64Mi' } } },
      ],
    },
  });
}

// Note what was answered; a client that is told to wait does so. What ends where nobody should work is late.
function note(phase, op, answers) {
  if (counted(Date.now()) === 'idle') late.add(answers.length);
  if (phase) {
    for (const answer of answers) {
      latency.add(waited(answer), { phase, op });
      failed.add(answer.status < 200 || answer.status > 299, { phase, op });
    }
    if (op === 'create') pods.add(answers.filter((answer) => answer.status === 201).length, { phase, op });
  }
  const told = answers.find((answer) => answer.status === 429);
  if (told) sleep(Number(told.headers['Retry-After'] || 1));
}

const until = (moment) => sleep(Math.max(0, moment - Date.now()) / 1000);

// The window with work that is now or comes next.
function next() {
  return windows.find((window) => window.phase in periods && Date.now() < window.end);
}

// Wait for a tick; say whether there is one. All engines wake at the same moments, as jobs that are started
// by the clock do.
function tick() {
  const window = next();
  if (!window) {
    sleep(1);
    return false;
  }
  const period = periods[window.phase];
  const since = Math.max(0, Date.now() - window.begin);
  until(window.begin + (period && Math.ceil(since / period) * period));
  return Date.now() < window.end;
}

export function work() {
  if (!tick()) return;
  // A burst counts as a whole, by its tick: so as many count in each arm, unless an engine is late.
  const phase = counted(Date.now());
  const engine = `e${exec.vu.idInTest}`;
  const names = Array.from({ length: Number(BURST) }, (_, n) => `${engine}-${exec.vu.iterationInScenario}-${n}`);
  // Client libraries take compressed answers, which is what long lists are sent as.
  const headers = { 'Content-Type': 'application/json', 'Accept-Encoding': 'gzip' };
  const params = { timeout: '30s', headers };
  const made = http.batch(names.map((name) => ['POST', place, manifest(name, engine), params]));
  note(phase, 'create', made);
  note(phase, 'list', [http.get(`${place}?labelSelector=engine%3D${engine}&resourceVersion=0`, params)]);
  note(phase, 'list', [http.get(`${place}?resourceVersion=0`, params)]);
  const there = names.filter((_, n) => made[n].status === 201);
  note(phase, 'delete', http.batch(there.map((name) => ['DELETE', `${place}/${name}`, null, params])));
}

export function watch() {
  until((next() || windows[0]).begin);
  const query = `watch=1&timeoutSeconds=5&labelSelector=engine%3De${exec.vu.idInTest}`;
  const phase = counted(Date.now());
  const answer = http.get(`${place}?${query}`, { timeout: '30s' });
  if (phase) watches.add(answer.status !== 200, { phase });
  if (answer.status !== 200) sleep(1);
}

export function handleSummary(data) {
  return { [SUMMARY]: JSON.stringify(data.metrics) };
}
