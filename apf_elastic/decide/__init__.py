"""temporary"""
from apf_elastic.model import *
def decide(world, settings):
    creates=[]; retire=[]; decisions=[]
    by={}
    for r in world.resources: by.setdefault(r.queue,[]).append(r)
    for name,q in settings.queues.items():
        d=world.demand.get(name)
        if not isinstance(d,Seen) or (q.pool and not isinstance(world.pools.get(q.pool),Seen)):
            decisions.append(Decision(name,hold=getattr(d,'reason','pool unknown'))); continue
        need=sum(g.waiting*g.shape.cores for g in d.value.groups)
        rs=by.get(name,[])
        have=sum((r.slot.free.cores if r.slot else 0) if r.state is State.READY else r.shape.cores for r in rs if r.state in ON_ITS_WAY or r.state is State.READY)
        w=need-have
        acc=[Account(name,g.shape,g.waiting,0,g.waiting) for g in d.value.groups]
        for use in q.backends:
            bv=world.backends[use.backend]
            if w<=0 or not isinstance(bv.listing,Seen) or bv.health.breaker is Breaker.OPEN: continue
            o=bv.offerings.value[-1]
            lim=o.limit or 10**6
            n=min(-(-w//o.shape.cores), lim-sum(r.backend==use.backend for r in rs))
            if n>0: creates.append(Create(name,use.backend,o,n,"jobs wait")); w-=n*o.shape.cores
        if need==0:
            for r in rs:
                if r.state in (State.SUBMITTED,State.PENDING): retire.append(Retire(Verb.CANCEL,r.id,"no demand"))
                elif r.idle_since and world.now-r.idle_since>(q.retirement.idle_s or 30): retire.append(Retire(Verb.DRAIN,r.id,"idle"))
        decisions.append(Decision(name,accounts=tuple(acc)))
    return Plan(tuple(creates),tuple(retire),tuple(decisions))
