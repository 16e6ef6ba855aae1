// Online clients of a control plane of several machines: a request that fails is sent again, to the next
// load balancer, as a client with both addresses does (open loop); after 0.1 s, then twice as long each time.
import http from 'k6/http';
import exec from 'k6/execution';
import { sleep } from 'k6';
import { Counter, Rate, Trend } from 'k6/metrics';

const { URLS, NAMESPACE, OBJECTS, RATE, SECONDS, ATTEMPTS, CERTIFICATE, KEY, SUMMARY } = __ENV;
const fronts = URLS.split(',');
const latency = new Trend('latency', true);
const failed = new Rate('failed');
const resent = new Counter('resent');

export const options = {
  scenarios: {
    online: {
      executor: 'constant-arrival-rate',
      rate: Number(RATE),
      duration: `${SECONDS}s`,
      // Made before it begins: a request that waits for its sender would be the load's fault.
      preAllocatedVUs: 100,
      maxVUs: 500,
    },
  },
  tlsAuth: [{ cert: open(CERTIFICATE), key: open(KEY) }],
  discardResponseBodies: true,
  summaryTrendStats: ['p(50)', 'p(99)', 'max', 'count'],
};

const headers = { 'Content-Type': 'application/merge-patch+json' };

function ask(front) {
  const number = exec.scenario.iterationInTest;
  const object = `${front}/api/v1/namespaces/${NAMESPACE}/configmaps/online-${number % Number(OBJECTS)}`;
  if (number % 3) return http.get(object, { timeout: '5s' });
  return http.patch(object, JSON.stringify({ data: { count: String(number) } }), { headers, timeout: '5s' });
}

export default function () {
  const began = Date.now();
  let answer;
  for (let attempt = 0; attempt < Number(ATTEMPTS); attempt++) {
    answer = ask(fronts[attempt % fronts.length]);
    if (answer.status === 200) break;
    resent.add(1);
    sleep(0.1 * 2 ** attempt);
  }
  latency.add(Date.now() - began);
  failed.add(answer.status !== 200);
}

export function handleSummary(data) {
  return { [SUMMARY]: JSON.stringify(data.metrics) };
}
