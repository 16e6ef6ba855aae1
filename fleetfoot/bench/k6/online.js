// An online service: reads, lists and patches its own objects at a constant rate, whether or not earlier
// requests have been answered (open loop).
import http from 'k6/http';
import exec from 'k6/execution';
import { Rate, Trend } from 'k6/metrics';
import { counted, duration, lines, waited } from './windows.js';

const { URL, NAMESPACE, OBJECTS, RATE, CERTIFICATE, KEY, SUMMARY } = __ENV;
const place = `${URL}/api/v1/namespaces/${NAMESPACE}/configmaps`;
const latency = new Trend('latency', true);
const failed = new Rate('failed');

export const options = {
  scenarios: {
    online: {
      executor: 'constant-arrival-rate',
      rate: Number(RATE),
      duration: duration(),
      // Made before it begins, and connected in the first window's lead: a late one would be the load's fault.
      preAllocatedVUs: 100,
      maxVUs: 500,
    },
  },
  tlsAuth: [{ cert: open(CERTIFICATE), key: open(KEY) }],
  discardResponseBodies: true,
  summaryTrendStats: ['p(50)', 'p(99)', 'max', 'count'],
  thresholds: lines(['latency', 'failed'], ['get', 'list', 'patch']),
};

const PATCH = { headers: { 'Content-Type': 'application/merge-patch+json' }, timeout: '10s' };

function ask(name) {
  const number = exec.scenario.iterationInTest;
  switch (number % 10) {
    case 0:
      return ['list', http.get(`${place}?labelSelector=part%3D${(number % 100) / 10}&resourceVersion=0`, { timeout: '10s' })];
    case 3:
    case 6: {
      const body = JSON.stringify({ data: { count: String(number) } });
      return ['patch', http.patch(`${place}/${name}`, body, PATCH)];
    }
    default:
      return ['get', http.get(`${place}/${name}`, { timeout: '10s' })];
  }
}

export default function () {
  const phase = counted(Date.now());
  const [op, answer] = ask(`online-${exec.scenario.iterationInTest % Number(OBJECTS)}`);
  if (!phase) return;
  latency.add(waited(answer), { phase, op });
  failed.add(answer.status !== 200, { phase, op });
}

export function handleSummary(data) {
  return { [SUMMARY]: JSON.stringify(data.metrics) };
}
