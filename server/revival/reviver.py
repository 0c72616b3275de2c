"""prototype"""
from dataclasses import dataclass, field
import torch
from torch import Tensor, nn
from torch.func import functional_call
import torch.nn.functional as F
from server.revival.generator import Images, ImageGenerator, augmented

Values = dict[str, Tensor]

@dataclass
class Settings:
    gain: float = 0.3
    steps: int = 5
    lr: float = 1e-3
    samples: int = 8
    every: int = 4
    synthesis_steps: int = 5
    synthesis_batch: int = 64
    lr_g: float = 3e-3
    lr_z: float = 1e-2
    feature: float = 0.1
    onehot: float = 1.0
    adversarial: float = 0.1
    serve: int = 0
    freeze: int = 10
    warmup: int = 30
    pool: int = 16000
    latent: int = 64
    source: str = "generator"
    temperature: float = 1.0

@dataclass
class Slot:
    values: Values
    proportions: Tensor
    probes: int = 1


class Reviver:
    def __init__(self, model: nn.Module, images: Images, settings: Settings, seed: int):
        self.model, self.images, self.s = model, images, settings
        self.model.train(False)
        for p in self.model.parameters():
            p.requires_grad_(False)
        self.chance = torch.Generator().manual_seed(seed)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.generator = ImageGenerator(images, settings.latent)
        self.meta = torch.optim.Adam(self.generator.parameters(), lr=settings.lr_g, betas=(0.5, 0.999))
        self.slots: dict[str, Slot] = {}
        self.revivals = 0
        with torch.no_grad():
            x = images.low + (images.high - images.low) * torch.rand(2, *images.shape)
            self.classes = self.model(x).shape[1]
        self.x = torch.empty(0, *images.shape)
        self.y = torch.empty(0, dtype=torch.long)
        self.tracked = [m for m in self.model.modules() if hasattr(m, "running_mean") and hasattr(m, "running_var")]
        self.names = [n for n, m in self.model.named_modules() if m in self.tracked]
        self.seen: list[Tensor] = []
        for m in self.tracked:
            m.register_forward_pre_hook(self._see)

    def _see(self, module, args):
        self.seen.append(args[0])

    def _run(self, values: Values, x: Tensor) -> Tensor:
        self.seen.clear()
        return functional_call(self.model, values, (x,))

    @torch.no_grad()
    def take(self, silo: str, values: Values) -> None:
        noise = torch.randn(256, *self.images.shape, generator=self.chance)
        p = F.softmax(self._run(values, noise) / 0.8, dim=1).mean(0)
        before = self.slots.get(silo)
        if before is None:
            self.slots[silo] = Slot(values, p)
        elif before.probes < 2:
            self.slots[silo] = Slot(values, (before.proportions + p) / 2, 2)
        else:
            self.slots[silo] = Slot(values, before.proportions, 2)

    def revive(self, student: Values, version: int) -> Values | None:
        if version < self.s.freeze:
            return None
        if self.s.source == "generator" and self.revivals % self.s.every == 0:
            self.synthesise(student, version)
        self.revivals += 1
        if version <= self.s.warmup:
            return None
        return self.distil(student)

    def _pick(self, n: int, p: Tensor) -> Tensor:
        if self.s.source == "noise":
            i = self.images
            return i.low + (i.high - i.low) * torch.rand(n, *i.shape, generator=self.chance)
        labels = torch.multinomial(p, n, replacement=True, generator=self.chance)
        out = torch.randint(0, len(self.y), (n,), generator=self.chance)
        for k, c in enumerate(labels.tolist()):
            mine = self._by.get(c)
            if mine is not None:
                out[k] = mine[int(torch.randint(0, len(mine), (1,), generator=self.chance))]
        return self.x[out]

    def distil(self, student: Values) -> Values:
        s = self.s
        self._by = {c: (self.y == c).nonzero().flatten() for c in range(self.classes) if (self.y == c).any()}
        new = {k: v.clone() for k, v in student.items()}
        trainable = {k: new[k].requires_grad_() for k, _ in self.model.named_parameters() if k in new}
        opt = torch.optim.Adam(trainable.values(), lr=s.lr, weight_decay=1e-5)
        slots = list(self.slots.values())
        for _ in range(s.steps):
            xs, targets = [], []
            for slot in slots:
                x = augmented(self._pick(s.samples, slot.proportions), self.images.flips, self.chance)
                with torch.no_grad():
                    targets.append(F.log_softmax(self._run(slot.values, x) / s.temperature, 1))
                xs.append(x)
            out = F.log_softmax(self._run(new, torch.cat(xs)) / s.temperature, 1)
            loss = s.temperature**2 * F.kl_div(out, torch.cat(targets), log_target=True, reduction="batchmean")
            opt.zero_grad()
            loss.backward()
            opt.step()
        return {k: (v.detach() - student[k]) for k, v in trainable.items()}

    def synthesise(self, student: Values, version: int) -> None:
        s = self.s
        slots = list(self.slots.values())
        if s.serve and s.serve < len(slots):
            chosen = torch.randperm(len(slots), generator=self.chance)[: s.serve].tolist()
            slots = [slots[k] for k in chosen]
        P = torch.stack([slot.proportions for slot in slots])
        y = torch.multinomial(P.mean(0), s.synthesis_batch, replacement=True, generator=self.chance)
        W = (P / P.sum(0, keepdim=True))[:, y]  # J, B
        z = torch.randn(s.synthesis_batch, s.latent, generator=self.chance).requires_grad_()
        E = torch.randn(self.classes, s.latent, generator=self.chance).requires_grad_()
        g = ImageGenerator(self.images, s.latent)
        g.load_state_dict(self.generator.state_dict())
        opt = torch.optim.Adam([{"params": g.parameters(), "lr": s.lr_g}, {"params": [z, E], "lr": s.lr_z}], betas=(0.5, 0.999))
        best, bestx = None, None
        n = s.synthesis_batch
        for _ in range(s.synthesis_steps):
            x = g(z + 0.2 * E[y])
            a = augmented(x, self.images.flips, self.chance)
            adv = s.adversarial and version > s.warmup
            if adv:
                st = self._run(student, a)
                logp_s = F.log_softmax(st, 1)
            feat = oh = ad = torch.zeros(())
            for w, slot in zip(W, slots):
                out = self._run(slot.values, a)
                if s.feature and self.tracked:
                    f = torch.zeros(())
                    for name, t in zip(self.names, self.seen):
                        d = (0, 2, 3) if t.dim() == 4 else (0,)
                        f = f + (t.mean(d) - slot.values[name + ".running_mean"]).norm() + (t.var(d, unbiased=False) - slot.values[name + ".running_var"]).norm()
                    feat = feat + w.sum() * f
                oh = oh + (w * F.cross_entropy(out, y, reduction="none")).sum()
                if adv:
                    logp_t = F.log_softmax(out, 1)
                    agree = (out.argmax(1) == st.argmax(1)).float()
                    ad = ad - (w * agree * F.kl_div(logp_s, logp_t, log_target=True, reduction="none").sum(1)).sum()
            loss = (s.feature * feat + s.onehot * oh + s.adversarial * ad) / n
            v = float(loss)
            if best is None or v < best:
                best, bestx = v, x.detach()
            opt.zero_grad()
            loss.backward()
            opt.step()
        self.meta.zero_grad()
        for p, q in zip(self.generator.parameters(), g.parameters()):
            p.grad = p.detach() - q.detach()
        self.meta.step()
        self.x = torch.cat([self.x, bestx])[-s.pool:]
        self.y = torch.cat([self.y, y])[-s.pool:]
