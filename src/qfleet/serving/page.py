"""The page at /: what is served, how to ask it, and a form to try one observation. No file or network beside it.

It holds nothing of the policy: it asks the server, where that wants a token with the one that the reader types in.
"""

from __future__ import annotations

import base64
import hashlib

_STYLE = """
:root { color-scheme: light dark; font-family: system-ui, sans-serif; line-height: 1.5; }
body { max-width: 46rem; margin: 2rem auto; padding: 0 1rem; }
textarea, input { width: 100%; box-sizing: border-box; font: inherit; font-family: ui-monospace, monospace; }
textarea { height: 7rem; }
button { font: inherit; padding: .4rem 1rem; margin: .5rem 0; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; padding: .75rem;
  border: 1px solid color-mix(in srgb, currentColor 30%, transparent);
  border-radius: .4rem; }
dt { font-weight: 600; } dd { margin: 0 0 .5rem 0; overflow-wrap: anywhere; }
label { display: block; margin-top: .75rem; font-weight: 600; }
"""

_SCRIPT = """
"use strict";
const $ = (id) => document.getElementById(id);
const field = $("token");
const headers = () => field && field.value ? { Authorization: "Bearer " + field.value } : {};
let version = "";
const zeros = (shape) => shape.length ? Array.from({ length: shape[0] }, () => zeros(shape.slice(1))) : 0;
function fact(name, value) {
  const term = document.createElement("dt"), text = document.createElement("dd");
  term.textContent = name; text.textContent = value;
  $("facts").append(term, text);
}
async function describe() {
  let answer, policy;
  if (!field || field.value) {
    try { answer = await fetch("v1/policy", { headers: headers() }); policy = await answer.json(); }
    catch (error) { policy = { error: { message: "no answer from the server" } }; }
  } else { policy = { error: { message: "this server wants a token" } }; }
  $("facts").replaceChildren();
  if (policy.error) { fact("Not described", policy.error.message); return; }
  version = policy.version;
  fact("Environment", policy.env_id);
  fact("Algorithm", policy.algo);
  fact("Version", version);
  fact("Observation", policy.observation.dtype + " [" + policy.observation.shape + "], " + policy.observation.space);
  fact("Action", policy.action.num_actions + " actions, " + policy.action.space);
  fact("q_values", policy.outputs.q_values);
  if (policy.facts.mean_return !== undefined) fact("Return at export", policy.facts.mean_return);
  if (!$("obs").value) $("obs").value = JSON.stringify(zeros(policy.observation.shape));
}
$("form").addEventListener("submit", async (event) => {
  event.preventDefault();
  let obs;
  try { obs = JSON.parse($("obs").value); }
  catch (error) { $("answer").textContent = "not JSON: " + error.message; return; }
  const start = performance.now();
  try {
    const answer = await fetch("v1/act", {
      method: "POST", headers: { "Content-Type": "application/json", ...headers() },
      body: JSON.stringify({ obs, q_values: true }),
    });
    const text = await answer.text();
    $("answer").textContent = answer.status + " in " + (performance.now() - start).toFixed(1) + " ms\\n" + text;
    if (answer.ok && JSON.parse(text).version !== version) { describe(); }
  } catch (error) { $("answer").textContent = "no answer from the server"; }
});
if (field) {
  field.addEventListener("change", describe);
  $("who").addEventListener("submit", (event) => { event.preventDefault(); describe(); });
}
$("curl").textContent = $("curl").textContent.replaceAll("URL", location.origin);
describe();
"""

_ASK_FOR_TOKEN = """<form id="who">
<label for="token">Token</label>
<input id="token" type="password" autocomplete="off">
</form>"""


def page(*, has_token: bool) -> str:
    """The page.

    Args:
        has_token: whether the server asks for one.
    """
    ask = _ASK_FOR_TOKEN if has_token else ""
    curl_token, client_token = (" -H 'Authorization: Bearer TOKEN'", ', "TOKEN"') if has_token else ("", "")
    # A link cannot show a token.
    document = "openapi.json" if has_token else '<a href="openapi.json">openapi.json</a>'
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>qfleet: a served policy</title>
<link rel="icon" href="data:,">
<style>{_STYLE}</style>
</head>
<body>
<main>
<h1>A served policy</h1>
{ask}
<dl id="facts" aria-live="polite"></dl>
<h2>Try it</h2>
<form id="form">
<label for="obs">One observation, or a list of them, as JSON</label>
<textarea id="obs" spellcheck="false"></textarea>
<button type="submit">Act</button>
</form>
<pre id="answer" role="status" aria-label="Answer">&nbsp;</pre>
<h2>Ask it</h2>
<pre id="curl">curl URL/v1/act{curl_token} -H 'Content-Type: application/json' -d '{{"obs": [...], "q_values": true}}'

python -c 'from qfleet.client import PolicyClient; print(PolicyClient("URL"{client_token}).act([...]))'</pre>
<dl>
<dt>POST v1/act</dt><dd>JSON: obs, q_values, action_mask. Or application/octet-stream: raw observations.</dd>
<dt>GET {document}</dt><dd>every path, with the schema of an observation</dd>
<dt>GET v1/policy</dt><dd>what is served</dd>
<dt>POST v1/reload</dt><dd>load the model anew (with a token)</dd>
<dt>GET <a href="livez">livez</a>, <a href="readyz">readyz</a>, metrics</dt><dd>for whoever watches the server</dd>
</dl>
</main>
<script>{_SCRIPT}</script>
</body>
</html>
"""


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


PAGE_HEADERS = {
    "content-security-policy": f"default-src 'none'; style-src {_hash(_STYLE)}; script-src {_hash(_SCRIPT)}; "
    "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
}
