from autopar.cost_model import fusion_borders
class MemoryModel:
    def __init__(self, step, graph, roles):
        self.fusion=fusion_borders(step.jaxpr.jaxpr); self.roles=roles
    def on(self, problem): return self
    def peak(self, states): return 0,0
    def breakdown(self, states): return {}
