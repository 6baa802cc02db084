"""Plan a GPT of 1.3 billion parameters for 16 TPU v5e chips, on a machine that has none.

``remat`` recomputes each layer in the backward pass: without it this model's activations do not
fit, and ``autopar.plan`` would say by how much. ``scan`` traces one layer in place of 24.
"""

import autopar
from autopar.models import preset

workload = preset("gpt:1.3b", remat=True, scan=True)
batch = workload.abstract_batch(64)
state = workload.abstract_state(batch)  # shapes alone: no array is ever made
cluster = autopar.Cluster.preset("tpu-v5e", shape=(4, 4))

plan = autopar.plan(workload.train_step, state, batch, cluster=cluster)

print(f"{workload.parameter_count() / 1e9:.2f} billion parameters\n\n{plan}\n")
print(f"tokens a second: {workload.tokens_per_batch / plan.predicted.step_s:,.0f}")
print(f"the feed-forward layers: {plan.spec_of('params/blocks/mlp/up/kernel')}")
print(f"their Adam moments:      {plan.spec_of('mu/blocks/mlp/up/kernel')}")
