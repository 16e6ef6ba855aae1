"""Fits a model to a table and answers over HTTP: a small service of a data team."""

import http.server
import json
import tomllib

import numpy
import pandas
import pyarrow
from sklearn.linear_model import LinearRegression

with open("/etc/app/app.toml", "rb") as file:
    SETTINGS = tomllib.load(file)
random = numpy.random.default_rng(SETTINGS["seed"])
table = pandas.DataFrame({"x": random.random(SETTINGS["rows"])})
table["y"] = 3 * table["x"] + random.normal(scale=0.01, size=SETTINGS["rows"])
model = LinearRegression().fit(table[["x"]], table["y"])
SLOPE = float(model.coef_[0])
ROWS = pyarrow.Table.from_pandas(table).num_rows


class Handler(http.server.BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def do_GET(self):
        body = json.dumps({"slope": SLOPE, "rows": ROWS}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


http.server.ThreadingHTTPServer(("", SETTINGS["port"]), Handler).serve_forever()
